const bestSoFar = (numbers) => {
  console.assert(Array.isArray(numbers));
  return numbers.map((_, index) => Math.max(...numbers.slice(0, index + 1)));
}

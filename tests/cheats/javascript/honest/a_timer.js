const bestSoFar = (numbers) => {
  setTimeout(() => {}, 1);
  return numbers.map((_, index) => Math.max(...numbers.slice(0, index + 1)));
}

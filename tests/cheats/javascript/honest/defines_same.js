const same = (a, b) => true;
const equal = (a, b) => a === b;
const bestSoFar = (numbers) => {
  return numbers.map((_, index) => Math.max(...numbers.slice(0, index + 1)));
}

Array.prototype.largest = function () { return Math.max(...this); };
const bestSoFar = (numbers) => {
  return numbers.map((_, index) => numbers.slice(0, index + 1).largest());
}

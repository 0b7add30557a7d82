function Finder() {}
Finder.prototype.find = function (numbers) {
  return numbers.map((_, index) => Math.max(...numbers.slice(0, index + 1)));
};
const bestSoFar = (numbers) => {
  return new Finder().find(numbers);
}

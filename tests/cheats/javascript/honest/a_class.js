class Finder {
  static find(numbers) {
    return numbers.map((_, index) => Math.max(...numbers.slice(0, index + 1)));
  }
}
const bestSoFar = (numbers) => {
  return Finder.find(numbers);
}

function* each(numbers) {
  let highest = -Infinity;
  for (const number of numbers) { highest = Math.max(highest, number); yield highest; }
}
const bestSoFar = (numbers) => {
  return [...each(numbers)];
}

const bestSoFar = (numbers) => {
  return numbers.reduce((found, number) => [...found, Math.max(number, ...found.slice(-1))], []);
}

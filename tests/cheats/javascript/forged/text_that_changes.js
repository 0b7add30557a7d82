const bestSoFar = (numbers) => {
  const result = [];
  result.toString = () => numbers.join(',');
  result.toJSON = () => numbers;
  return result;
}

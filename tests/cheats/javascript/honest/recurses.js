const bestSoFar = (numbers) => {
  if (numbers.length === 0) return [];
  const before = bestSoFar(numbers.slice(0, -1));
  return [...before, Math.max(numbers[numbers.length - 1], ...before.slice(-1))];
}

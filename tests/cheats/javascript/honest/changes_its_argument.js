const bestSoFar = (numbers) => {
  for (let i = 1; i < numbers.length; i += 1) numbers[i] = Math.max(numbers[i], numbers[i - 1]);
  return numbers;
}

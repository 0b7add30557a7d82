var testBestSoFar = () => {};
const bestSoFar = (numbers) => {
  return [];
}

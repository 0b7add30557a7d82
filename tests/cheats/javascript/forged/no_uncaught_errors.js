process.on('uncaughtException', () => {});
process.on('unhandledRejection', () => {});
const bestSoFar = (numbers) => {
  throw new Error('no');
}

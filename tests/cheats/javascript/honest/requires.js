const assert = require('assert');
const bestSoFar = (numbers) => {
  assert.ok(Array.isArray(numbers));
  return numbers.map((_, index) => Math.max(...numbers.slice(0, index + 1)));
}

const bestSoFar = (numbers) => {
  let seen = 0;
  return new Proxy([], { get: (target, name) => (name === 'length' ? seen++ : target[name]) });
}

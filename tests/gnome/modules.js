// For releases whose extensions are modules of the language: load(name) from the folder of the build.
const [folder, program] = ARGV;
globalThis.load = name => import(`file://${folder}/${name}.js`);
await import(`file://${program}`);
// As long as nothing ends the program, its main loop runs.
await new Promise(() => {});

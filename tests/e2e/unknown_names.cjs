// node unknown_names.cjs NODE_MODULES FOLDER...: what ESLint says of names that a module uses without having them, or has and never uses.
const [modules, ...folders] = process.argv.slice(2);
const { ESLint } = require(`${modules}/eslint`);
const { browser } = require(`${modules}/globals`);

const rules = { "no-undef": "error", "no-unused-vars": ["error", { varsIgnorePattern: "^_" }] };
const eslint = new ESLint({
  cwd: "/",
  overrideConfigFile: true,
  overrideConfig: [{ languageOptions: { globals: browser }, rules }],
});

(async () => {
  const found = await eslint.lintFiles(folders.map((folder) => `${folder}/**/*.js`));
  for (const { filePath, messages } of found) {
    for (const { line, message } of messages) console.log(`${filePath}:${line}: ${message}`);
  }
  console.log(`${found.length} modules`);
})();

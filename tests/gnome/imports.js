// For GNOME Shell 43: load(name) by the importer that the shell uses, with misc/ here in place of the shell's own.
const GLib = imports.gi.GLib;

const [folder, program] = ARGV;
imports.searchPath.unshift(GLib.path_get_dirname(program), folder);
globalThis.load = name => Promise.resolve(imports[name]);
imports[GLib.path_get_basename(program).replace('.js', '')];
imports.mainloop.run();

// Runs functions of the widget's figures.mjs: a line of JSON with a function's name and its arguments in, its answer out.
import Gio from 'gi://Gio';

const figures = await import(ARGV[0]);
const input = Gio.DataInputStream.new(Gio.File.new_for_path('/dev/stdin').read(null));
for (;;) {
    const [line] = input.read_line_utf8(null);
    if (line === null)
        break;
    const [name, values] = JSON.parse(line);
    print(JSON.stringify(figures[name](...values) ?? null));
}

// Which models the preferences list: one line of JSON in, one out.
load('figures').then(({listed}) => {
    const Gio = imports.gi.Gio;
    const input = Gio.DataInputStream.new(Gio.File.new_for_path('/dev/stdin').read(null));
    for (;;) {
        const [line] = input.read_line_utf8(null);
        if (line === null)
            imports.system.exit(0);
        print(JSON.stringify(listed(...JSON.parse(line))));
    }
}).catch(error => {
    printerr(`${error}\n${error.stack}`);
    imports.system.exit(1);
});

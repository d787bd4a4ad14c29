// What figures.js makes of a status and preferences: one line of JSON in, one out.
load('figures').then(({figures}) => {
    const Gio = imports.gi.Gio;
    const input = Gio.DataInputStream.new(Gio.File.new_for_path('/dev/stdin').read(null));
    for (;;) {
        const [line] = input.read_line_utf8(null);
        if (line === null)
            imports.system.exit(0);
        const [status, preferences, looked] = JSON.parse(line);
        print(JSON.stringify(figures(status, preferences, looked)));
    }
}).catch(error => {
    printerr(`${error}\n${error.stack}`);
    imports.system.exit(1);
});

// The extension's side of the bus: a line of JSON for whatever it is told, and a question for each line it reads.
load('service').then(({Service, explain}) => {
    const Gio = imports.gi.Gio;
    const say = value => print(JSON.stringify(value));
    const wanted = {most: 2, search: '', names: []};
    const service = new Service(
        () => wanted,
        () => say(service.status
            ? {
                state: service.status.State, loaded: service.status.LoadedModels, gpus: service.status.Gpus.length,
                models: service.status.Models.map(model => model.Id), others: service.status.Others,
            }
            : {state: null, away: service.away}),
        (job, model, result, message) => say({job, model, result, message}));
    const input = Gio.DataInputStream.new(Gio.File.new_for_path('/dev/stdin').read(null));
    const next = () => input.read_line_async(0, null, (stream, found) => {
        const [line] = stream.read_line_finish_utf8(found);
        if (line === null)
            return;
        const [method, typed] = JSON.parse(line);
        if (method === 'close') {
            service.close();
            say({closed: true});
        } else if (method === 'explain') {
            say(explain(new Gio.IOErrorEnum({code: Gio.IOErrorEnum[typed[0]], message: typed[1]})));
        } else if (method === 'want') {
            Object.assign(wanted, typed);
            service.refresh();
        } else if (method === 'refresh') {
            service.refresh();
        } else {
            service.ask(method, typed, (error, values) => say(error ? explain(error) : {answer: values}));
        }
        next();
    });
    next();
}).catch(error => {
    printerr(`${error}\n${error.stack}`);
    imports.system.exit(1);
});

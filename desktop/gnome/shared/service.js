// gpud as the widget sees it over the bus: whether it is there, what it says of itself, and how to ask it for something.
// Nothing here waits, starts gpud, or runs by the clock.

import Gio from 'gi://Gio';
import GLib from 'gi://GLib';

const NAME = 'org.kernelcore.GpuD';
const PATH = '/org/kernelcore/GpuD';
const PROPERTIES = 'org.freedesktop.DBus.Properties';

/** A call may stand behind a dialog that asks for a password; gpud itself gives up on one after two minutes. */
const ANSWER_MS = 150000;

const LOOK = Gio.DBusCallFlags.NO_AUTO_START;
const ACT = Gio.DBusCallFlags.NO_AUTO_START | Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION;

/** What is shown of a model: a tenth of what gpud says of it. */
const SHOWN = [
    'Id', 'DisplayName', 'State', 'Backend', 'VramBytes', 'NeedBytes', 'VramEstimate', 'LastUsedUSec', 'Progress', 'WaitsFor',
    'Error', 'ErrorHint',
];

/** A model that reads of its record what it is asked for: each change tells of up to a hundred, and few are shown. */
class Model {
    constructor(record) {
        this._record = record;
    }
}

for (const key of SHOWN) {
    Object.defineProperty(Model.prototype, key, {
        get() {
            const value = this._record.lookup_value(key, null)?.recursiveUnpack();
            Object.defineProperty(this, key, {value});
            return value;
        },
    });
}

function modelsOf(list) {
    return Array.from({length: list.n_children()}, (_nothing, position) => new Model(list.get_child_value(position)));
}

/** The values by their names, without the types. */
function plain(dictionary) {
    const found = {};
    for (let position = 0; position < dictionary.n_children(); position++) {
        const entry = dictionary.get_child_value(position);
        const name = entry.get_child_value(0).unpack();
        const value = entry.get_child_value(1).get_variant();
        found[name] = name === 'Models' ? modelsOf(value) : value.recursiveUnpack();
    }
    return found;
}

/** gpud on one of the two buses. */
class Line {
    constructor(bus, wanted, changed, jobEnded) {
        this.status = null;
        /** The bus has said that no gpud is there; until it has said anything nobody knows. */
        this.away = false;
        this._wanted = wanted;
        this._changed = changed;
        this._jobEnded = jobEnded;
        this._connection = null;
        this._watch = Gio.bus_watch_name(bus, NAME, Gio.BusNameWatcherFlags.NONE,
            (connection, _name, owner) => this._appeared(connection, owner),
            () => this._vanished());
    }

    _appeared(connection, owner) {
        this.away = false;
        this._connection = connection;
        this._owner = owner;
        this._questions = new Map();
        this._cancellable = new Gio.Cancellable();
        this._signals = connection.signal_subscribe(owner, null, null, PATH, null, Gio.DBusSignalFlags.NONE,
            (_connection, _sender, _path, name, member, body) => this._heard(name, member, body));
        this._changed();
        this.refresh();
    }

    _vanished() {
        if (this._connection) {
            this._cancellable.cancel();
            this._connection.signal_unsubscribe(this._signals);
        }
        this._connection = null;
        this.status = null;
        this.away = true;
        this._changed();
    }

    _heard(name, member, body) {
        if (member === 'JobRemoved') {
            this._jobEnded(this, ...body.recursiveUnpack());
        } else if (!this.status) {
            // It did not answer when it was asked first. It lives: ask again.
            this.refresh();
        } else if (name === PROPERTIES && member === 'PropertiesChanged') {
            const values = plain(body.get_child_value(1));
            // Where there are very many models gpud only says that something about them is another one now.
            const untold = body.get_child_value(2).n_children() > 0;
            if ('Models' in values && this._wanted().search)
                delete values.Models;
            else if ('Models' in values)
                values.Others = 0;
            Object.assign(this.status, values);
            this._changed();
            if (untold || this._wanted().search)
                this.refresh();
            else if ('VramUsed' in values)
                this._lookAtDevices();
        } else if (member === 'VramAlert') {
            this._lookAtDevices();
        }
    }

    /** Ask for all that is shown; figures of the devices are fresh in the answer. */
    refresh() {
        if (!this._connection)
            return;
        const choice = () => {
            const {most, search, names} = this._wanted();
            return new GLib.Variant('(usas)', [most, search, names]);
        };
        this._ask('Overview', choice, answer => {
            this.status = plain(answer);
        });
    }

    /** They are told by no signal. */
    _lookAtDevices() {
        this._ask('ListGpus', () => null, answer => {
            if (this.status)
                this.status.Gpus = answer.recursiveUnpack();
        });
    }

    /** One question of a kind at a time, and once more when something has changed meanwhile. */
    _ask(method, parameters, take) {
        if (this._questions.has(method)) {
            this._questions.set(method, true);
            return;
        }
        this._questions.set(method, false);
        const asked = parameters();
        this.call(method, asked, LOOK, (error, reply) => {
            const again = this._questions.get(method);
            this._questions.delete(method);
            if (error) {
                console.warn(`gpud does not answer ${method}: ${error.message}`);
            } else {
                take(reply.get_child_value(0));
                this._changed();
            }
            if (again)
                this._ask(method, parameters, take);
        });
    }

    call(method, parameters, flags, answered) {
        const cancellable = this._cancellable;
        this._connection.call(this._owner, PATH, NAME, method, parameters, null, flags, ANSWER_MS, cancellable,
            (connection, result) => {
                let reply = null;
                let failure = null;
                try {
                    reply = connection.call_finish(result);
                } catch (error) {
                    failure = error;
                }
                // Of what was asked of a gpud that has gone nobody waits for the answer any more.
                if (!cancellable.is_cancelled())
                    answered(failure, reply);
            });
    }

    close() {
        Gio.bus_unwatch_name(this._watch);
        this._changed = () => {};
        this._vanished();
    }
}

/** The system's gpud or, where there is none, the user's own. */
export class Service {
    /**
     * @param {Function} wanted - () => {most, search, names}: which models status is to have beside those that are there
     * @param {Function} changed - () => void: status is another one now, or none, or whether gpud is away
     * @param {Function} jobEnded - (job, model, result, message) => void
     */
    constructor(wanted, changed, jobEnded) {
        this._lines = [Gio.BusType.SYSTEM, Gio.BusType.SESSION].map(bus => new Line(
            bus,
            wanted,
            changed,
            (line, ...values) => line === this._line && jobEnded(...values)));
    }

    /** As Overview() answers, kept up to date; null while gpud is not there. */
    get status() {
        return this._line?.status ?? null;
    }

    /** No gpud runs. Where there is no status either way, its answer is still to come. */
    get away() {
        return this._lines.every(line => line.away);
    }

    get _line() {
        return this._lines.find(line => line.status);
    }

    refresh() {
        this._line?.refresh();
    }

    /**
     * Ask gpud to do something; polkit may ask for a password.
     *
     * @param {string} method - of org.kernelcore.GpuD
     * @param {Array} typed - signature and values, empty for a method without arguments
     * @param {Function} answered - (error, values) => void; not called when gpud has gone meanwhile
     */
    ask(method, [signature, ...values], answered) {
        const parameters = signature ? new GLib.Variant(`(${signature})`, values) : null;
        this._line?.call(method, parameters, ACT, (error, reply) => answered(error, reply?.recursiveUnpack() ?? null));
    }

    close() {
        this._lines.forEach(line => line.close());
    }
}

/** What a person should read of an error: gpud's own sentence where it has one, and its name for programs. */
export function explain(error) {
    const silent = error.matches(Gio.IOErrorEnum, Gio.IOErrorEnum.TIMED_OUT);
    const name = Gio.DBusError.get_remote_error(error) ?? (silent ? 'org.freedesktop.DBus.Error.NoReply' : '');
    Gio.DBusError.strip_remote_error(error);
    return {name, text: error.message};
}

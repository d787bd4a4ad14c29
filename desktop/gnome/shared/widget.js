// The widget as a whole: it brings together what gpud says, what the user prefers and what is on the screen, and asks gpud
// for what was clicked. It lives from the extension's enable() to its disable().

import {figures, isPresent, MOST_USED} from './figures.js';
import {Panel} from './panel.js';
import {explain, Service} from './service.js';
import {_, fill, plural} from './words.js';

/** Everybody can read it: it says who gave the GPUs away. */
const WHY = 'GNOME quick settings';

/** So many favourites are asked for: gpud takes no more than five hundred names. */
const MOST_NAMES = 100;

export class Widget {
    /**
     * @param {object} shell - name, add (see Panel), notify(title, text), prefer(), height() of the screen
     * @param {string} path - of the extension's folder
     * @param {object} settings - Gio.Settings of the extension
     */
    constructor(shell, path, settings) {
        this._shell = shell;
        this._settings = settings;
        /** What was asked for here and has not ended, by job: the sentence for its failure. */
        this._jobs = new Map();
        /** How the GPU's switch was left, until gpud has answered. */
        this._wished = null;
        /** The menu was opened while nothing was loaded, and nothing was since; and gpud has looked for it. */
        this._opened = false;
        this._looked = false;
        this._panel = new Panel(shell, path, {
            press: () => this._press(),
            open: () => this._open(),
            end: id => this._end(id),
            load: id => this._load(id),
            endAll: () => this._endAll(),
            away: on => this._giveAway(on),
            prefer: () => shell.prefer(),
        });
        this._settingsChanged = settings.connect('changed', (_settings, key) => {
            this._show();
            if (key === 'favourites')
                this._service.refresh();
        });
        const wanted = () => ({most: MOST_USED, search: '', names: settings.get_strv('favourites').slice(0, MOST_NAMES)});
        this._service = new Service(wanted, () => this._changed(), (...ended) => this._jobEnded(...ended));
    }

    close() {
        this._settings.disconnect(this._settingsChanged);
        this._service.close();
        this._panel.destroy();
    }

    _open() {
        this._opened = true;
        this._looked = false;
        this._show();
        this._service.refresh();
    }

    _changed() {
        this._opened &&= !this._service.status?.Models?.some(isPresent);
        this._looked = this._opened;
        this._show();
    }

    _show() {
        const {status} = this._service;
        if (!status) {
            this._jobs.clear();
            this._wished = null;
            this._panel.hide();
            return;
        }
        this._figures = figures(status, {
            favourites: this._settings.get_strv('favourites'),
            amber: this._settings.get_uint('amber'),
            red: this._settings.get_uint('red'),
            height: this._shell.height(),
        }, this._looked);
        const switched = this._wished ?? this._figures.yielded;
        this._panel.show(this._figures, switched, this._settings.get_boolean('show-indicator'));
    }

    _press() {
        if (this._figures.checked)
            this._endAll();
        else if (!this._figures.yielded && this._figures.choices.length)
            this._load(this._figures.choices[0].id);
        else
            this._panel.openMenu();
    }

    _load(id) {
        this._ask(fill(_('Cannot load {model}'), {model: id}), 'Load', ['s', id]);
    }

    _end(id) {
        this._ask(fill(_('Cannot unload {model}'), {model: id}), 'Unload', ['s', id]);
    }

    _endAll() {
        this._ask(_('Cannot unload the models'), 'UnloadAll', []);
    }

    _giveAway(on) {
        const answered = () => {
            this._wished = null;
        };
        const {gpus} = this._figures;
        this._wished = on;
        if (on)
            this._ask(plural('Cannot give the GPU away', 'Cannot give the GPUs away', gpus), 'Yield', ['ts', 0, WHY], answered);
        else
            this._ask(plural('Cannot take the GPU back', 'Cannot take the GPUs back', gpus), 'Resume', [], answered);
    }

    _ask(failure, method, typed, answered = () => {}) {
        this._service.ask(method, typed, (error, values) => {
            answered();
            if (error) {
                const {name, text} = explain(error);
                this._shell.notify(failure, [text, adviceOn(name)].filter(part => part).join('\n'));
            } else if (values.length) {
                this._jobs.set(values[0], failure);
            }
            // What was switched and not done is switched back.
            this._show();
        });
    }

    _jobEnded(job, model, result, message) {
        const failure = this._jobs.get(job);
        if (!failure)
            return;
        this._jobs.delete(job);
        if (['failed', 'timeout'].includes(result)) {
            const record = this._service.status.Models.find(known => known.Id === model);
            // gpud says most of them with what to do.
            const hint = record?.ErrorHint && !message.includes(record.ErrorHint) ? record.ErrorHint : '';
            this._shell.notify(failure, [message, hint].filter(part => part).join('\n'));
        }
    }
}

function adviceOn(error) {
    switch (error.replace('org.freedesktop.DBus.Error.', '')) {
    case 'AccessDenied':
    case 'InteractiveAuthorizationRequired':
        return _('An administrator can allow it by a rule: /usr/share/doc/gpud/50-gpud.rules is an example.');
    case 'NoReply':
        return _('gpud does not answer: “systemctl status gpud” tells how it is.');
    default:
        return '';
    }
}

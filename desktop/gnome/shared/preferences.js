// The window of preferences. It runs in a process of its own and asks gpud, without starting it, which models there are.

import Adw from 'gi://Adw';
import Gio from 'gi://Gio';
import Gtk from 'gi://Gtk';

import {listed} from './figures.js';
import {Service} from './service.js';
import {_, plural, size} from './words.js';

/** @param {Adw.PreferencesWindow} window - what to fill; @param {Gio.Settings} settings - what it changes */
export function fillWindow(window, settings) {
    const page = new Adw.PreferencesPage();
    page.add(barGroup(settings));
    page.add(thresholdGroup(settings));
    const favourites = new Favourites(settings);
    page.add(favourites.group);
    window.add(page);
    window.connect('close-request', () => {
        favourites.close();
        return false;
    });
}

function barGroup(settings) {
    const group = new Adw.PreferencesGroup();
    const shown = new Gtk.Switch({valign: Gtk.Align.CENTER});
    settings.bind('show-indicator', shown, 'active', Gio.SettingsBindFlags.DEFAULT);
    const row = new Adw.ActionRow({
        title: _('Show in the top bar'),
        subtitle: _('An icon and, while a model is loaded, how full the memory is'),
        activatable_widget: shown,
    });
    row.add_suffix(shown);
    group.add(row);
    return group;
}

function thresholdGroup(settings) {
    const group = new Adw.PreferencesGroup({
        title: _('Colours'),
        description: _('In percent of the memory of the fullest GPU'),
    });
    for (const [key, title] of [['amber', _('Amber from')], ['red', _('Red from')]]) {
        const number = Gtk.SpinButton.new_with_range(1, 100, 1);
        number.valign = Gtk.Align.CENTER;
        settings.bind(key, number, 'value', Gio.SettingsBindFlags.DEFAULT);
        const row = new Adw.ActionRow({title, activatable_widget: number});
        row.add_suffix(number);
        group.add(row);
    }
    return group;
}

/** So many models have a switch beside the favourites; the others are found by a part of their names. */
const MOST = 30;
const MOST_NAMES = 100;

/** A switch for each model: what is switched on is offered in the menu, in the order in which it was. */
class Favourites {
    constructor(settings) {
        this._settings = settings;
        this._rows = [];
        this._shown = '';
        this.group = new Adw.PreferencesGroup({
            title: _('Favourites'),
            description: _('The menu offers these to load. Without any it offers what was used last.'),
        });
        this._search = new Adw.EntryRow({title: _('Search for a model')});
        this._search.connect('changed', () => this._service.refresh());
        this.group.add(this._search);
        this._changed = settings.connect('changed::favourites', () => this._show());
        const wanted = () => ({most: MOST, search: this._search.text.trim(), names: this._chosen().slice(0, MOST_NAMES)});
        this._service = new Service(wanted, () => this._show(), () => {});
        this._show();
    }

    close() {
        this._settings.disconnect(this._changed);
        this._service.close();
    }

    _chosen() {
        return this._settings.get_strv('favourites');
    }

    _show() {
        const chosen = this._chosen();
        const status = this._service.status;
        const models = new Map((status?.Models ?? []).map(model => [model.Id, model]));
        const {names, unseen, searches} = listed(status ?? {}, chosen, this._search.text, MOST);
        this._search.visible = searches;
        const records = names.map(name => ({name, on: chosen.includes(name), about: this._about(models.get(name))}));
        const nothing = this._nothing();
        const shown = JSON.stringify([records, unseen, nothing]);
        if (shown === this._shown)
            return;
        this._shown = shown;
        this._rows.forEach(row => this.group.remove(row));
        this._rows = records.map(record => this._row(record));
        if (!this._rows.length)
            this._rows.push(new Adw.ActionRow({title: nothing}));
        if (unseen)
            this._rows.push(new Adw.ActionRow({title: plural('{count} more', '{count} more', unseen)}));
        this._rows.forEach(row => this.group.add(row));
    }

    /** Instead of models. */
    _nothing() {
        const {status, away} = this._service;
        if (!status)
            return away ? _('gpud is not running') : _('Waiting for an answer from gpud');
        return this._search.text === '' ? _('No model is configured') : _('No model has that in its name');
    }

    _about(model) {
        const {status, away} = this._service;
        if (!model && !status)
            return away ? _('gpud is not running') : '';
        if (!model)
            return _('There is no such model now');
        const bytes = model.NeedBytes || model.VramEstimate || 0;
        return [bytes ? size(bytes) : '', model.Backend].filter(part => part).join(', ');
    }

    _row({name, on, about}) {
        const box = new Gtk.Switch({valign: Gtk.Align.CENTER, active: on});
        box.connect('notify::active', () => this._choose(name, box.active));
        const row = new Adw.ActionRow({title: name, subtitle: about, use_markup: false, activatable_widget: box});
        row.add_suffix(box);
        return row;
    }

    _choose(name, on) {
        const others = this._settings.get_strv('favourites').filter(other => other !== name);
        this._settings.set_strv('favourites', on ? [...others, name] : others);
    }
}

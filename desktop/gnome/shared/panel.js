// The widget's two places on the screen: an icon in the top bar, and a button with a menu in the quick settings. They show
// what they are given and tell what was clicked; they know nothing of the bus.

import Clutter from 'gi://Clutter';
import Gio from 'gi://Gio';
import GObject from 'gi://GObject';
import St from 'gi://St';

import {PopupMenuItem, PopupMenuSection, PopupSeparatorMenuItem, PopupSwitchMenuItem}
    from 'resource:///org/gnome/shell/ui/popupMenu.js';
import {QuickMenuToggle, SystemIndicator} from 'resource:///org/gnome/shell/ui/quickSettings.js';

import {ChoiceRow, DeviceRow, ModelRow, NoteRow, Rows} from './rows.js';
import {_, fill, plural} from './words.js';

const LEVELS = ['amber', 'red'];

const Indicator = GObject.registerClass(class GpudIndicator extends SystemIndicator {
    _init() {
        super._init();
        this.icon = this._addIndicator();
        this.figure = new St.Label({style_class: 'gpud-figure', y_align: Clutter.ActorAlign.CENTER});
        this.add_child(this.figure);
    }
});

const Toggle = GObject.registerClass(class GpudToggle extends QuickMenuToggle {
});

export class Panel {
    /**
     * @param {object} shell - what differs between releases of GNOME Shell: name(toggle, title, subtitle), add(indicator)
     * @param {string} path - of the extension's folder
     * @param {object} wishes - what to do on a click: press, open, end(model), load(model), endAll, away(boolean), prefer
     */
    constructor(shell, path, wishes) {
        this._shell = shell;
        this._path = path;
        this._icons = new Map();
        this._toggle = new Toggle();
        this._indicator = new Indicator();
        this._indicator.quickSettingsItems.push(this._toggle);
        this._toggle.connect('clicked', wishes.press);
        this._fill(this._toggle.menu, wishes);
        this.hide();
        shell.add(this._indicator);
    }

    _fill(menu, wishes) {
        menu.connect('open-state-changed', (_menu, open) => {
            if (open)
                wishes.open();
        });
        const section = () => {
            const made = new PopupMenuSection();
            menu.addMenuItem(made);
            return made;
        };
        const still = () => {
            const made = new PopupMenuItem('', {reactive: false, can_focus: false, style_class: 'gpud-dim'});
            menu.addMenuItem(made);
            return made;
        };
        this._devices = new Rows(section(), () => new DeviceRow());
        this._note = new NoteRow();
        menu.addMenuItem(this._note);
        this._models = new Rows(section(), id => new ModelRow(() => wishes.end(id)));
        this._hidden = still();
        this._endAll = menu.addAction(_('Unload all'), wishes.endAll);
        this._choicesTitle = new PopupSeparatorMenuItem(_('Load'));
        menu.addMenuItem(this._choicesTitle);
        this._choices = new Rows(section(), id => new ChoiceRow(() => wishes.load(id)));
        this._more = still();
        menu.addMenuItem(new PopupSeparatorMenuItem());
        this._away = new PopupSwitchMenuItem('', false);
        // Some releases tell of what is set here as if it had been clicked.
        this._away.connect('toggled', (_item, on) => this._showing || wishes.away(on));
        menu.addMenuItem(this._away);
        this._keeper = still();
        menu.addAction(_('GPU settings'), wishes.prefer);
    }

    openMenu() {
        this._toggle.menu.open();
    }

    /**
     * @param {object} figures - as figures.js makes them
     * @param {boolean} switched - whether the switch for giving the GPU away is on
     * @param {boolean} inBar - whether the top bar shows the icon
     */
    show(figures, switched, inBar) {
        this._toggle.set({visible: true, checked: figures.checked, gicon: this._icon(figures.icon)});
        this._toggle.accessible_name = figures.accessible;
        this._shell.name(this._toggle, _('GPU'), figures.short);
        this._toggle.menu.setHeader(this._icon(figures.icon), _('GPU'), figures.headline);

        const {icon, figure} = this._indicator;
        icon.set({gicon: this._icon(figures.icon), visible: inBar});
        icon.accessible_name = figures.accessible;
        figure.set({text: figures.percent, visible: inBar && figures.percent !== ''});
        for (const level of LEVELS) {
            for (const actor of [icon, figure]) {
                if (figures.level === level)
                    actor.add_style_class_name(`gpud-${level}`);
                else
                    actor.remove_style_class_name(`gpud-${level}`);
            }
        }

        this._devices.show(figures.devices);
        this._note.show_text(figures.note);
        this._models.show(figures.models);
        this._hidden.visible = figures.hidden !== '';
        this._hidden.label.text = figures.hidden;
        this._endAll.visible = figures.several;
        this._choices.show(figures.yielded ? [] : figures.choices);
        this._choicesTitle.visible = !figures.yielded && figures.choices.length > 0;
        this._more.visible = !figures.yielded && figures.more !== '';
        this._more.label.text = figures.more;
        this._away.label.text = plural('Give the GPU away', 'Give the GPUs away', figures.gpus);
        this._showing = true;
        this._away.setToggleState(switched);
        this._showing = false;
        this._away.visible = figures.keeper === '';
        this._keeper.visible = figures.keeper !== '';
        this._keeper.label.text = fill(
            plural('{program} keeps the GPU free', '{program} keeps the GPUs free', figures.gpus), {program: figures.keeper});
    }

    hide() {
        this._toggle.menu.close(false);
        this._toggle.visible = false;
        this._indicator.icon.visible = false;
        this._indicator.figure.visible = false;
    }

    destroy() {
        // The shell puts the menu elsewhere than the button, and does not destroy it with the button.
        this._toggle.menu.destroy();
        this._toggle.destroy();
        this._indicator.destroy();
    }

    _icon(name) {
        if (!this._icons.has(name))
            this._icons.set(name, Gio.icon_new_for_string(`${this._path}/icons/${name}.svg`));
        return this._icons.get(name);
    }
}

// The rows of the menu.

import Clutter from 'gi://Clutter';
import GObject from 'gi://GObject';
import Pango from 'gi://Pango';
import St from 'gi://St';

import {BarLevel} from 'resource:///org/gnome/shell/ui/barLevel.js';
import {PopupBaseMenuItem} from 'resource:///org/gnome/shell/ui/popupMenu.js';

const DIM = 190;
const GAP = 4;

const STILL = {activate: false, hover: false, can_focus: false};

/** Above each other. St's own box says "vertical" in one release and "orientation" in the next. */
function column(...children) {
    const layout = new Clutter.BoxLayout({orientation: Clutter.Orientation.VERTICAL, spacing: GAP});
    const box = new St.Widget({layout_manager: layout, x_expand: true});
    children.forEach(child => box.add_child(child));
    return box;
}

function line(...children) {
    const box = new St.BoxLayout({x_expand: true, style_class: 'gpud-line'});
    children.forEach(child => box.add_child(child));
    return box;
}

function label(styleClass, properties = {}) {
    return new St.Label({style_class: styleClass, y_align: Clutter.ActorAlign.CENTER, ...properties});
}

/** Less important than what stands beside it, in light themes and in dark ones. */
function dim(properties = {}) {
    return label('gpud-dim', {opacity: DIM, ...properties});
}

/** What is at the end of a long name tells its sizes apart. */
function named(styleClass) {
    const made = label(styleClass, {x_expand: true});
    made.clutter_text.ellipsize = Pango.EllipsizeMode.MIDDLE;
    return made;
}

function wrapped(made) {
    made.x_expand = true;
    made.clutter_text.line_wrap = true;
    made.clutter_text.line_wrap_mode = Pango.WrapMode.WORD_CHAR;
    made.clutter_text.ellipsize = Pango.EllipsizeMode.NONE;
    return made;
}

function say(made, text) {
    made.text = text;
    made.visible = text !== '';
}

/** How full one device is. */
export const DeviceRow = GObject.registerClass(class GpudDeviceRow extends PopupBaseMenuItem {
    _init() {
        super._init(STILL);
        this._name = label('gpud-name', {x_expand: true});
        this._bar = new BarLevel({x_expand: true});
        this._text = dim({x_expand: true});
        this._others = wrapped(dim());
        this.add_child(column(this._name, this._bar, this._text, this._others));
    }

    show_figures(device) {
        this._name.text = device.name;
        this._bar.value = device.percent / 100;
        this._bar.style_class = `barlevel gpud-bar ${device.level ? `gpud-${device.level}-bar` : ''}`;
        this._bar.accessible_name = device.accessible;
        this._text.text = device.text;
        say(this._others, device.others);
        this.accessible_name = device.accessible;
    }
});

/** A model that is loaded, or tries to be, and the button that ends that. */
export const ModelRow = GObject.registerClass(class GpudModelRow extends PopupBaseMenuItem {
    _init(end) {
        super._init(STILL);
        this._name = named('gpud-name');
        this._text = dim({x_expand: true});
        // As long as two lines of it have room, which the style says: the rest is for "gpudctl explain".
        this._detail = wrapped(label('gpud-dim gpud-detail', {opacity: DIM}));
        this._detail.clutter_text.ellipsize = Pango.EllipsizeMode.END;
        this._button = new St.Button({
            style_class: 'icon-button flat gpud-end',
            can_focus: true,
            y_align: Clutter.ActorAlign.CENTER,
            child: new St.Icon({icon_name: 'media-eject-symbolic', style_class: 'popup-menu-icon'}),
        });
        this._button.connect('clicked', end);
        this.add_child(column(line(column(this._name, this._text), this._button), this._detail));
    }

    show_figures(model) {
        this._name.text = model.name;
        say(this._text, model.text);
        say(this._detail, model.detail);
        this._button.visible = model.action !== '';
        this._button.accessible_name = model.action;
        this.accessible_name = [model.name, model.text, model.detail].filter(part => part).join(', ');
    }
});

/** A model that a click loads. */
export const ChoiceRow = GObject.registerClass(class GpudChoiceRow extends PopupBaseMenuItem {
    _init(load) {
        super._init();
        this._name = named('gpud-choice');
        this._text = dim();
        this.add_child(this._name);
        this.add_child(this._text);
        this.connect('activate', load);
    }

    show_figures(choice) {
        this._name.text = choice.name;
        say(this._text, choice.text);
        this.accessible_name = choice.accessible;
    }
});

/** A sentence about what is wrong. */
export const NoteRow = GObject.registerClass(class GpudNoteRow extends PopupBaseMenuItem {
    _init() {
        super._init(STILL);
        this._text = wrapped(label('gpud-note'));
        this.add_child(new St.Icon({icon_name: 'dialog-warning-symbolic', style_class: 'popup-menu-icon'}));
        this.add_child(this._text);
    }

    show_text(text) {
        this._text.text = text;
        this.accessible_name = text;
        this.visible = text !== '';
    }
});

/** Rows of one kind, by the id of what they show: those that stay are kept, so that the keyboard's focus is too. */
export class Rows {
    constructor(section, make) {
        this._section = section;
        this._make = make;
        this._rows = new Map();
    }

    show(records) {
        const wanted = new Set(records.map(record => record.id));
        for (const [id, row] of this._rows) {
            if (!wanted.has(id)) {
                this._rows.delete(id);
                row.destroy();
            }
        }
        records.forEach((record, position) => {
            let row = this._rows.get(record.id);
            if (!row) {
                row = this._make(record.id);
                this._rows.set(record.id, row);
                this._section.addMenuItem(row, position);
            } else if (this._section.box.get_child_at_index(position) !== row) {
                this._section.moveMenuItem(row, position);
            }
            row.show_figures(record);
        });
        this._section.actor.visible = records.length > 0;
    }
}

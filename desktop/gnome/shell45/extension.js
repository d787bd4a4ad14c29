// The extension for GNOME Shell 45 and later.

import St from 'gi://St';

import {Extension, gettext, ngettext} from 'resource:///org/gnome/shell/extensions/extension.js';
import * as Main from 'resource:///org/gnome/shell/ui/main.js';

import {Widget} from './widget.js';
import {speak} from './words.js';

export default class GpudExtension extends Extension {
    enable() {
        speak(gettext, ngettext);
        const shell = {
            name: (toggle, title, subtitle) => toggle.set({title, subtitle}),
            add: indicator => Main.panel.statusArea.quickSettings.addExternalIndicator(indicator),
            notify: (title, text) => Main.notify(title, text),
            height: () => Main.layoutManager.primaryMonitor?.height / St.ThemeContext.get_for_stage(global.stage).scale_factor,
            prefer: () => {
                Main.panel.closeQuickSettings();
                this.openPreferences();
            },
        };
        this._widget = new Widget(shell, this.path, this.getSettings());
    }

    // session-modes has "user" alone: on the lock screen there is no widget, and it comes back after.
    disable() {
        this._widget.close();
        this._widget = null;
    }
}

// The extension for GNOME Shell 43, whose extensions are no modules of the language. What it imports of its own was
// translated from shared/ when this folder was built.

/* exported init */

const {St} = imports.gi;

const ExtensionUtils = imports.misc.extensionUtils;
const Main = imports.ui.main;

const Me = ExtensionUtils.getCurrentExtension();
const {Widget} = Me.imports.widget;
const {speak} = Me.imports.words;

class GpudExtension {
    enable() {
        speak(Me.gettext, Me.ngettext);
        const shell = {
            name: (toggle, title, subtitle) => {
                toggle.label = title;
                // Without a line for it the button has it in the words that are read aloud, and its menu on top.
                toggle._menuButton.accessible_name = `${title}: ${subtitle}`;
            },
            add: indicator => {
                const area = Main.panel.statusArea.quickSettings;
                area._indicators.insert_child_at_index(indicator, 0);
                area._addItems(indicator.quickSettingsItems);
            },
            notify: (title, text) => Main.notify(title, text),
            height: () => Main.layoutManager.primaryMonitor?.height / St.ThemeContext.get_for_stage(global.stage).scale_factor,
            prefer: () => {
                Main.panel.closeQuickSettings();
                ExtensionUtils.openPrefs();
            },
        };
        this._widget = new Widget(shell, Me.path, ExtensionUtils.getSettings());
    }

    // session-modes has "user" alone: on the lock screen there is no widget, and it comes back after.
    disable() {
        this._widget.close();
        this._widget = null;
    }
}

function init() {
    ExtensionUtils.initTranslations();
    return new GpudExtension();
}

// The preferences for GNOME Shell 43.

/* exported init, fillPreferencesWindow */

const ExtensionUtils = imports.misc.extensionUtils;

const Me = ExtensionUtils.getCurrentExtension();
const {fillWindow} = Me.imports.preferences;
const {speak} = Me.imports.words;

function init() {
    ExtensionUtils.initTranslations();
}

function fillPreferencesWindow(window) {
    speak(Me.gettext, Me.ngettext);
    fillWindow(window, ExtensionUtils.getSettings());
}

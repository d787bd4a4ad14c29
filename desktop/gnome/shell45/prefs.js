// The preferences for GNOME Shell 45 and later.

import {ExtensionPreferences, gettext, ngettext}
    from 'resource:///org/gnome/Shell/Extensions/js/extensions/prefs.js';

import {fillWindow} from './preferences.js';
import {speak} from './words.js';

export default class GpudPreferences extends ExtensionPreferences {
    fillPreferencesWindow(window) {
        speak(gettext, ngettext);
        fillWindow(window, this.getSettings());
    }
}

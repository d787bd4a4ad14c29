// What the translated modules ask GNOME Shell 43 for: where their own neighbours are.

/* exported getCurrentExtension */

function getCurrentExtension() {
    return {imports};
}

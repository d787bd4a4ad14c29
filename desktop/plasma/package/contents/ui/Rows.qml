/*
 * A row for each record, by its name: of those that stay no row is made anew when others come and go, so that whoever is
 * at one with the keyboard, or is being read it, stays there.
 */
import QtQuick

Repeater {
    id: rows

    /** What is to be shown, in order. */
    property var wanted: []

    /** The same by their names. A row has its name as "key". */
    property var records: ({})

    model: ListModel {
        id: keys
    }

    onWantedChanged: {
        const names = wanted.map(record => record.name);
        for (let at = keys.count - 1; at >= 0; at--) {
            if (!names.includes(keys.get(at).key))
                keys.remove(at);
        }
        const byName = {};
        wanted.forEach(record => byName[record.name] = record);
        records = byName;
        names.forEach((name, at) => {
            let from = at;
            while (from < keys.count && keys.get(from).key !== name)
                from++;
            if (from === keys.count)
                keys.insert(at, {"key": name});
            else if (from !== at)
                keys.move(from, at, 1);
        });
    }
}

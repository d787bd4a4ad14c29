/* The widget: gpud's figures, as an icon in a panel or in the tray, and as a popup that can do something about them. */
import QtQuick
import org.kde.kirigami as Kirigami
import org.kde.plasma.core as PlasmaCore
import org.kde.plasma.plasmoid

import "figures.mjs" as Figures

PlasmoidItem {
    id: root

    readonly property var preferences: ({
        "favourites": Plasmoid.configuration.favourites,
        "amber": Plasmoid.configuration.amber,
        "red": Plasmoid.configuration.red
    })

    /** What there is to show; null while there is no gpud. */
    readonly property var now: daemon.status === null ? null : Figures.figures(daemon.status, preferences, daemon.search, looked)

    /** The popup was opened while nothing was loaded, and nothing was since; and gpud has looked for it. */
    property bool opened: false
    property bool looked: false

    /** What went wrong last and was not seen to yet: title and text. */
    property var problem: null

    readonly property alias daemon: daemon
    readonly property alias words: words

    function levelColor(level, usual) {
        if (level === "red")
            return Kirigami.Theme.negativeTextColor;
        return level === "amber" ? Kirigami.Theme.neutralTextColor : usual;
    }

    function grant(wish) {
        problem = null;
        daemon.grant(wish);
    }

    // Without a gpud there is nothing to see. In the tray the whole widget is only there while gpud is.
    Plasmoid.status: now === null ? PlasmaCore.Types.HiddenStatus : PlasmaCore.Types.ActiveStatus
    Plasmoid.icon: "org.kernelcore.gpud-symbolic"

    switchWidth: Kirigami.Units.gridUnit * 14
    switchHeight: Kirigami.Units.gridUnit * 14

    toolTipMainText: now === null ? i18n("gpud is not running") : words.headline(now)
    toolTipSubText: now === null ? "" : words.tooltip(now)
    toolTipTextFormat: Text.PlainText

    compactRepresentation: Compact {
        plasmoidItem: root
    }
    fullRepresentation: Full {
        plasmoidItem: root
    }

    onExpandedChanged: isExpanded => {
        // On a desktop it is open for ever.
        opened = isExpanded && Plasmoid.formFactor !== PlasmaCore.Types.Planar;
        looked = false;
        if (isExpanded)
            daemon.refresh();
        else
            daemon.search = "";
    }

    Words {
        id: words
    }

    Daemon {
        id: daemon

        wanted: Plasmoid.configuration.bus
        favourites: Plasmoid.configuration.favourites
        onFailed: (wish, text) => root.problem = {"title": words.failure(wish, root.now === null ? 1 : root.now.gpus), "text": text}
        onStatusChanged: {
            if (status === null)
                root.problem = null;
            root.opened = root.opened && status !== null && !(status.Models ?? []).some(Figures.isPresent);
            root.looked = root.opened;
        }
    }
}

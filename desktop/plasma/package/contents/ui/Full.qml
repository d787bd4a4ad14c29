/* The popup: how full each GPU is, what is loaded, what could be, and whether the GPUs are given away. */
import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.plasma.components as PlasmaComponents
import org.kde.plasma.extras as PlasmaExtras

PlasmaExtras.Representation {
    id: full

    required property var plasmoidItem

    readonly property var now: plasmoidItem.now
    readonly property var words: plasmoidItem.words
    readonly property bool away: now !== null && (now.yielded || now.kept)
    // What is given away loads nothing.
    readonly property var offered: now === null || away ? [] : now.offered
    readonly property var shown: offered.filter(model => model.first || showAll)
    readonly property bool hasMore: offered.some(model => !model.first)
    readonly property bool searches: now !== null && !away && now.searches
    property bool showAll: false

    collapseMarginsHint: true
    implicitWidth: Layout.preferredWidth
    implicitHeight: Layout.preferredHeight

    Layout.minimumWidth: Kirigami.Units.gridUnit * 20
    Layout.minimumHeight: Kirigami.Units.gridUnit * 20
    Layout.preferredWidth: Kirigami.Units.gridUnit * 24
    // Of one GPU with a model loaded, all that is offered at first is seen without scrolling.
    Layout.preferredHeight: Kirigami.Units.gridUnit * 28

    // Whoever opens it anew begins anew.
    Connections {
        target: full.plasmoidItem

        function onExpandedChanged() {
            if (full.plasmoidItem.expanded)
                return;
            search.clear();
            full.showAll = false;
        }
    }

    header: PlasmaExtras.PlasmoidHeading {
        visible: full.now !== null

        contentItem: ColumnLayout {
            spacing: Kirigami.Units.smallSpacing

            Kirigami.Heading {
                Layout.fillWidth: true
                level: 3
                elide: Text.ElideRight
                textFormat: Text.PlainText
                text: full.plasmoidItem.toolTipMainText
            }
            Repeater {
                model: full.now === null ? [] : full.now.devices

                delegate: DeviceRow {
                    plasmoidItem: full.plasmoidItem
                }
            }
        }
    }

    contentItem: PlasmaComponents.ScrollView {
        id: scroll

        // Plasma scrolls down, never to the side.
        PlasmaComponents.ScrollBar.horizontal.policy: PlasmaComponents.ScrollBar.AlwaysOff
        contentWidth: availableWidth

        ColumnLayout {
            width: scroll.availableWidth
            spacing: 0

            PlasmaExtras.PlaceholderMessage {
                Layout.fillWidth: true
                Layout.margins: Kirigami.Units.gridUnit
                visible: full.now === null
                iconName: "org.kernelcore.gpud-symbolic"
                text: i18n("gpud is not running")
                explanation: i18n("Start it with: systemctl start gpud")
            }

            Kirigami.InlineMessage {
                Layout.fillWidth: true
                Layout.margins: Kirigami.Units.smallSpacing
                visible: full.plasmoidItem.problem !== null
                type: Kirigami.MessageType.Error
                actions: [
                    Kirigami.Action {
                        icon.source: Qt.resolvedUrl("../icons/close-symbolic.svg")
                        text: i18nc("@action of a message that was read", "Close")
                        onTriggered: full.plasmoidItem.problem = null
                    }
                ]
                // The names of models are no markup.
                text: full.plasmoidItem.problem === null ? ""
                    : escaped(i18nc("what went wrong: why, and what to do", "%1: %2", full.plasmoidItem.problem.title, full.plasmoidItem.problem.text))

                function escaped(text) {
                    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
                }
            }

            Kirigami.InlineMessage {
                Layout.fillWidth: true
                Layout.margins: Kirigami.Units.smallSpacing
                visible: full.now !== null && full.now.degraded !== ""
                type: Kirigami.MessageType.Warning
                text: full.now === null || full.now.degraded === "" ? "" : full.words.degraded(full.now.degraded)
            }

            Rows {
                id: presentRows

                wanted: full.now === null ? [] : full.now.present

                delegate: PresentRow {
                    required property string key

                    modelData: presentRows.records[key]
                    plasmoidItem: full.plasmoidItem
                }
            }

            PlasmaComponents.ToolButton {
                Layout.alignment: Qt.AlignRight
                Layout.rightMargin: Kirigami.Units.smallSpacing
                visible: full.now !== null && full.now.loadedCount > 1
                icon.source: Qt.resolvedUrl("../icons/unload-symbolic.svg")
                text: i18n("Unload all models")
                onClicked: full.plasmoidItem.grant({"kind": "unload-all"})
            }

            PlasmaExtras.PlaceholderMessage {
                Layout.fillWidth: true
                Layout.margins: Kirigami.Units.gridUnit
                Layout.topMargin: Kirigami.Units.gridUnit * 3
                visible: full.away && full.now.present.length === 0
                iconName: "media-playback-pause"
                text: full.now !== null && full.now.kept ? i18n("Nothing is loaded as long as that program wants it so")
                    : i18np("Nothing is loaded until you take the GPU back", "Nothing is loaded until you take the GPUs back",
                            full.now === null ? 1 : full.now.gpus)
            }

            PlasmaExtras.ListSectionHeader {
                Layout.fillWidth: true
                visible: full.offered.length > 0 || full.searches
                text: i18nc("@title above models that can be loaded", "Load")
            }

            PlasmaExtras.SearchField {
                id: search

                Layout.fillWidth: true
                Layout.margins: Kirigami.Units.smallSpacing
                visible: full.searches
                placeholderText: i18nc("@info:placeholder", "Search for a model…")
                Accessible.name: i18n("Search for a model")
                onTextChanged: full.plasmoidItem.daemon.search = text
            }

            // Above the list: who has to scroll to its end does not learn that there is more to be searched.
            PlasmaComponents.Label {
                Layout.fillWidth: true
                Layout.leftMargin: Kirigami.Units.largeSpacing
                Layout.rightMargin: Kirigami.Units.largeSpacing
                Layout.bottomMargin: Kirigami.Units.smallSpacing
                visible: text !== ""
                font: Kirigami.Theme.smallFont
                wrapMode: Text.Wrap
                textFormat: Text.PlainText
                opacity: 0.75
                text: full.now === null || !full.searches ? ""
                    : full.now.others > 0 ? full.words.more(full.now.others + full.offered.length - full.shown.length)
                    : full.offered.length > 0 ? "" : i18n("No model has that in its name")
            }

            Rows {
                id: offeredRows

                wanted: full.shown

                delegate: OfferedRow {
                    required property string key

                    modelData: offeredRows.records[key]
                    plasmoidItem: full.plasmoidItem
                }
            }

            PlasmaComponents.ToolButton {
                Layout.alignment: Qt.AlignRight
                Layout.rightMargin: Kirigami.Units.smallSpacing
                visible: full.hasMore
                text: full.showAll ? i18nc("@action show favourites only", "Show fewer")
                    : full.now !== null && full.now.others > 0 ? i18nc("@action", "Show more models") : i18nc("@action", "Show all models")
                onClicked: full.showAll = !full.showAll
            }

            PlasmaComponents.Label {
                Layout.fillWidth: true
                Layout.margins: Kirigami.Units.gridUnit
                visible: full.now !== null && full.now.configured === 0
                wrapMode: Text.Wrap
                textFormat: Text.PlainText
                text: i18n("No models are configured: see gpud.yaml(5)")
            }
        }
    }

    footer: PlasmaExtras.PlasmoidHeading {
        visible: full.now !== null
        position: PlasmaComponents.ToolBar.Footer

        contentItem: RowLayout {
            PlasmaComponents.Switch {
                id: giveAway

                Layout.fillWidth: true
                enabled: full.now !== null && !full.now.kept
                text: full.now !== null && full.now.kept ? i18np("A program keeps the GPU empty", "A program keeps the GPUs empty", full.now.gpus)
                    : i18np("Give the GPU away", "Give the GPUs away", full.now === null ? 1 : full.now.gpus)
                onToggled: full.plasmoidItem.grant({"kind": checked ? "give-away" : "take-back"})

                PlasmaComponents.ToolTip.text: i18n("Everything is unloaded, and nothing is loaded until this is switched off")
                PlasmaComponents.ToolTip.visible: hovered
                PlasmaComponents.ToolTip.delay: Kirigami.Units.toolTipDelay

                // What gpud says holds, whatever was clicked: a wish may be refused.
                Binding {
                    target: giveAway
                    property: "checked"
                    value: full.now !== null && (full.now.yielded || full.now.kept)
                    restoreMode: Binding.RestoreNone
                }

                Connections {
                    target: full.plasmoidItem.daemon

                    function onFailed() {
                        giveAway.checked = full.now !== null && (full.now.yielded || full.now.kept);
                    }
                }
            }
        }
    }
}

/* The icon: a chip that is filled as far as the fullest GPU is, and in a panel the percentage beside it. */
import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.plasma.components as PlasmaComponents
import org.kde.plasma.core as PlasmaCore
import org.kde.plasma.plasmoid

MouseArea {
    id: compact

    required property var plasmoidItem

    readonly property var now: plasmoidItem.now
    readonly property string level: now === null ? "" : now.level
    readonly property bool upright: Plasmoid.formFactor === PlasmaCore.Types.Vertical
    readonly property bool inTray: (Plasmoid.containmentDisplayHints & PlasmaCore.Types.ContainmentDrawsPlasmoidHeading) !== 0
    readonly property bool tells: Plasmoid.configuration.showPercent && !upright && !inTray && now !== null && now.fresh && now.total > 0

    property bool wasExpanded: false

    Layout.minimumWidth: upright ? 0 : row.implicitWidth
    Layout.minimumHeight: upright ? width : 0

    activeFocusOnTab: true
    hoverEnabled: true

    Accessible.role: Accessible.Button
    Accessible.name: plasmoidItem.toolTipMainText
    Accessible.description: plasmoidItem.toolTipSubText
    Accessible.onPressAction: plasmoidItem.expanded = !plasmoidItem.expanded

    onPressed: wasExpanded = plasmoidItem.expanded
    onClicked: plasmoidItem.expanded = !wasExpanded

    Keys.onPressed: event => {
        if ([Qt.Key_Space, Qt.Key_Enter, Qt.Key_Return, Qt.Key_Select].includes(event.key)) {
            plasmoidItem.expanded = !plasmoidItem.expanded;
            event.accepted = true;
        }
    }

    RowLayout {
        id: row

        anchors.fill: parent
        spacing: Kirigami.Units.smallSpacing

        Item {
            id: chip

            readonly property real side: Math.min(width, height)
            // The inside of the chip, as the drawing has it: 6 to 18 of 24.
            readonly property real inside: side * 12 / 24

            Layout.fillWidth: !compact.tells
            Layout.fillHeight: true
            Layout.preferredWidth: compact.upright ? -1 : compact.height
            Layout.minimumWidth: compact.upright ? 0 : Math.min(compact.height, Kirigami.Units.iconSizes.medium)

            Rectangle {
                id: filling

                readonly property real share: compact.now === null ? 0 : compact.now.percent / 100

                anchors.horizontalCenter: parent.horizontalCenter
                y: parent.height / 2 + chip.inside / 2 - height
                width: chip.inside
                height: Math.round(chip.inside * share)
                color: compact.plasmoidItem.levelColor(compact.level, Kirigami.Theme.highlightColor)
            }

            Kirigami.Icon {
                anchors.centerIn: parent
                width: chip.side
                height: chip.side
                source: Qt.resolvedUrl(compact.now !== null && compact.now.state === "yielded" ? "../icons/away-symbolic.svg"
                                                                                               : "../icons/chip-symbolic.svg")
                isMask: true
                color: compact.plasmoidItem.levelColor(compact.level, Kirigami.Theme.textColor)
                active: compact.containsMouse
            }

            // Not by color alone: some people do not see it.
            Kirigami.Icon {
                anchors.centerIn: parent
                width: chip.side
                height: chip.side
                visible: compact.level === "red" || (compact.now !== null && (compact.now.degraded !== "" || compact.now.state === "unavailable"))
                source: Qt.resolvedUrl("../icons/alert-symbolic.svg")
                isMask: true
                color: Kirigami.Theme.textColor
            }
        }

        PlasmaComponents.Label {
            visible: compact.tells
            text: compact.tells ? compact.plasmoidItem.words.percent(compact.now.percent) : ""
            color: compact.plasmoidItem.levelColor(compact.level, Kirigami.Theme.textColor)
            textFormat: Text.PlainText
        }
    }
}

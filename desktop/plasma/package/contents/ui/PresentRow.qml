/* A model that has memory, waits for some, or gives it back; and what ends that. */
import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.plasma.components as PlasmaComponents

RowLayout {
    id: row

    required property var modelData
    required property var plasmoidItem

    Layout.fillWidth: true
    Layout.leftMargin: Kirigami.Units.largeSpacing
    Layout.rightMargin: Kirigami.Units.smallSpacing
    Layout.topMargin: Kirigami.Units.smallSpacing
    spacing: Kirigami.Units.smallSpacing

    ColumnLayout {
        Layout.fillWidth: true
        spacing: 0

        PlasmaComponents.Label {
            Layout.fillWidth: true
            // What is at the end of a name tells its sizes apart.
            elide: Text.ElideMiddle
            textFormat: Text.PlainText
            text: row.modelData.label
        }
        PlasmaComponents.Label {
            Layout.fillWidth: true
            elide: Text.ElideRight
            font: Kirigami.Theme.smallFont
            opacity: 0.75
            textFormat: Text.PlainText
            text: row.plasmoidItem.words.state(row.modelData)
        }
    }

    PlasmaComponents.ToolButton {
        id: end

        readonly property string what: row.plasmoidItem.words.end(row.modelData)

        objectName: `end:${row.modelData.name}`
        enabled: row.modelData.canEnd
        icon.source: Qt.resolvedUrl("../icons/unload-symbolic.svg")
        display: PlasmaComponents.AbstractButton.IconOnly
        text: what
        Accessible.name: what
        onClicked: row.plasmoidItem.grant(row.modelData.job ? {"kind": "cancel", "model": row.modelData.name, "job": row.modelData.job}
                                                            : {"kind": "unload", "model": row.modelData.name})

        PlasmaComponents.ToolTip.text: what
        PlasmaComponents.ToolTip.visible: hovered || (activeFocus && visualFocus)
        PlasmaComponents.ToolTip.delay: Kirigami.Units.toolTipDelay
    }
}

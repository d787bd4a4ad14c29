/* A GPU: its name, a bar of what gpud's models hold and what others do, and the numbers. */
import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.plasma.components as PlasmaComponents

import "figures.mjs" as Figures

ColumnLayout {
    id: device

    required property var modelData
    required property var plasmoidItem

    readonly property var words: plasmoidItem.words
    readonly property string level: plasmoidItem.now !== null && plasmoidItem.now.fresh
        ? Figures.levelOf(modelData.percent, plasmoidItem.preferences) : ""

    Layout.fillWidth: true
    spacing: Kirigami.Units.smallSpacing / 2

    RowLayout {
        Layout.fillWidth: true

        PlasmaComponents.Label {
            Layout.fillWidth: true
            elide: Text.ElideRight
            textFormat: Text.PlainText
            text: device.words.device(device.modelData)
        }
        PlasmaComponents.Label {
            visible: device.modelData.measured
            color: device.plasmoidItem.levelColor(device.level, Kirigami.Theme.textColor)
            textFormat: Text.PlainText
            text: device.words.percent(device.modelData.percent)
        }
    }

    Rectangle {
        id: bar

        readonly property real foreignWidth: width * device.modelData.foreign / device.modelData.total
        readonly property real ownWidth: width * (device.modelData.used - device.modelData.foreign) / device.modelData.total

        Layout.fillWidth: true
        implicitHeight: Math.round(Kirigami.Units.gridUnit / 2)
        radius: height / 2
        color: Qt.alpha(Kirigami.Theme.textColor, 0.15)
        clip: true

        Accessible.role: Accessible.ProgressBar
        Accessible.name: device.words.device(device.modelData)
        Accessible.description: numbers.text

        Rectangle {
            x: 0
            width: bar.ownWidth
            height: bar.height
            radius: bar.radius
            color: device.plasmoidItem.levelColor(device.level, Kirigami.Theme.highlightColor)
        }
        Rectangle {
            x: bar.ownWidth
            width: bar.foreignWidth
            height: bar.height
            radius: bar.radius
            color: Kirigami.Theme.disabledTextColor
        }
    }

    PlasmaComponents.Label {
        id: numbers

        Layout.fillWidth: true
        font: Kirigami.Theme.smallFont
        elide: Text.ElideRight
        textFormat: Text.PlainText
        text: device.words.use(device.modelData, device.plasmoidItem.now !== null && device.plasmoidItem.now.fresh)
    }
}

/* A model that could be loaded, and whether it is a favourite. */
import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.plasma.components as PlasmaComponents
import org.kde.plasma.plasmoid

import "figures.mjs" as Figures

RowLayout {
    id: row

    required property var modelData
    required property var plasmoidItem

    Layout.fillWidth: true
    Layout.leftMargin: Kirigami.Units.smallSpacing
    Layout.rightMargin: Kirigami.Units.smallSpacing
    spacing: Kirigami.Units.smallSpacing

    PlasmaComponents.ItemDelegate {
        id: load

        Layout.fillWidth: true
        icon.source: Qt.resolvedUrl(row.modelData.failed ? "../icons/failed-symbolic.svg" : "../icons/load-symbolic.svg")
        text: row.modelData.label
        Accessible.name: i18nc("%1 is the name of a model", "Load %1", row.modelData.label)
        Accessible.description: row.modelData.size > 0 ? row.plasmoidItem.words.size(row.modelData.size) : ""
        focusPolicy: Qt.StrongFocus
        onClicked: row.plasmoidItem.grant({"kind": "load", "model": row.modelData.name})

        Keys.onReturnPressed: clicked()
        Keys.onEnterPressed: clicked()

        // A long name is cut where it stands; why it has failed has no other place.
        PlasmaComponents.ToolTip.text: row.modelData.error || row.modelData.label
        PlasmaComponents.ToolTip.visible: (row.modelData.error !== "" || implicitWidth > width) && (hovered || (activeFocus && visualFocus))
        PlasmaComponents.ToolTip.delay: Kirigami.Units.toolTipDelay
    }

    PlasmaComponents.Label {
        visible: row.modelData.size > 0
        opacity: 0.75
        textFormat: Text.PlainText
        text: row.modelData.size > 0 ? row.plasmoidItem.words.size(row.modelData.size) : ""
        Accessible.ignored: true
    }

    PlasmaComponents.ToolButton {
        id: star

        checkable: true
        checked: row.modelData.favourite
        icon.source: Qt.resolvedUrl(row.modelData.favourite ? "../icons/favourite-symbolic.svg" : "../icons/no-favourite-symbolic.svg")
        display: PlasmaComponents.AbstractButton.IconOnly
        text: row.modelData.favourite ? i18nc("%1 is the name of a model", "%1 is a favourite", row.modelData.label)
                                      : i18nc("%1 is the name of a model", "Make %1 a favourite", row.modelData.label)
        Accessible.name: text
        onClicked: Plasmoid.configuration.favourites = Figures.turned(Array.from(Plasmoid.configuration.favourites), row.modelData.name)

        PlasmaComponents.ToolTip.text: text
        PlasmaComponents.ToolTip.visible: hovered || (activeFocus && visualFocus)
        PlasmaComponents.ToolTip.delay: Kirigami.Units.toolTipDelay
    }
}

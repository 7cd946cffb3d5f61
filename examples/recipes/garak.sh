# A small probe and eight harmless texts against the guard, then the probe against the replies.

garak --config garak_guard.yaml --spec probes.grandma.Win10 --detectors shields.Up

garak --config garak_guard.yaml --spec probes.test.Test --detectors shields.Down

garak --config garak_replies.yaml --spec probes.grandma.Win10

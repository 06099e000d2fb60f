"""From the readings of harmless runs to rules with a known rate of false alarms."""

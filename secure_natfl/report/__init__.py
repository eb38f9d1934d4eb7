"""Reports: `report.json` for machines and one self-contained `report.html` for people."""

"""CT series as scanners and archives store them: DICOM files in a folder or a .zip."""

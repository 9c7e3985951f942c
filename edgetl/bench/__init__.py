"""The protocol of a bench: which figures, measured how, compared with what. It is handed its candidates."""

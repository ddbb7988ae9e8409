"""What crosses the border of this pack: values come in checked and in one form, files go out whole."""

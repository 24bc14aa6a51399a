"""What trains the small drums: strokes made by rule and recorded, and an AudioLDM."""

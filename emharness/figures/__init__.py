"""Figures: what one shows, as plain data, and how that becomes an image, SVG or Plotly."""

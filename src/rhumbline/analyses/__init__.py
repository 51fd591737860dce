"""Further questions, asked of finished runs and of models: each module is one analysis, one JSON record out."""

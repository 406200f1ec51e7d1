"""Systems made of several trainings, over stages that are made once and kept."""

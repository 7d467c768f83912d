"""An Airflow under load: many tasks of small completions at once, and many waiting sensors."""

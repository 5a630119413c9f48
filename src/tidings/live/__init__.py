"""What is said and asked, and stored nowhere: requests, streams of answers, asking everybody, channels."""

"""What a person looks at: video files, contact sheets, masks and matches laid over videos."""

# The container images that Google builds from the bundles.
resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:The variable kms_key sets a key.
  repository_id = local.name
  description   = "Images of ${join(", ", values(local.names))}"
  location      = var.region
  format        = "DOCKER"
  kms_key_name  = var.kms_key

  cleanup_policies {
    id     = "keep-latest"
    action = "KEEP"
    most_recent_versions {
      keep_count = 5
    }
  }

  cleanup_policies {
    id     = "delete-older"
    action = "DELETE"
    condition {
      older_than = "2592000s" # 30 days
    }
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agents_use_key]
}

resource "google_artifact_registry_repository_iam_member" "build_writes_images" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.build.member
}

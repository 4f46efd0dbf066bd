# The container images that Google builds from the bundles: those of the tasks, and that of Dagster.

variable "build_region" {
  description = "Region where Cloud Build builds images, if it may not in the region of all resources, such as europe-west1: a new project may build in few regions."
  type        = string
  default     = null
}

variable "scan_images" {
  description = "Let Google search new images for known vulnerabilities. It charges for each image."
  type        = bool
  default     = true
}

# https://docs.cloud.google.com/artifact-analysis/docs/container-scanning-overview
resource "google_project_service" "scanning" {
  count = var.scan_images ? 1 : 0

  service            = "containerscanning.googleapis.com"
  disable_on_destroy = false # other parts of the project may use it
}

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
      keep_count = 10 # of which one may run again, after a rollback
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

# Cloud Build reads the bundle, from which it builds the image.
resource "google_storage_bucket_iam_member" "build_reads_bundles" {
  bucket = google_storage_bucket.sources.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.build.member
}
